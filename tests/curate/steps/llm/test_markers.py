"""Blocks of a page that go round the model."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.curate.ask.answers import DropError
from nano3.curate.steps.llm.markers import cut_out

PAGE = """# Sorting

Home | Blog | Login

Lists are sorted so:

```python
xs = [3, 1]

xs.sort()
```

The cost is

$$
O(n \\log n)
$$

````
```
nested
```
````

Subscribe to our newsletter!
"""


def inside(page, longest=10_000):
    return cut_out(page, longest)


def test_the_model_sees_markers_and_the_ends_of_blocks():
    [chunk] = inside(PAGE)
    assert "sort()" not in chunk.text
    assert "log n" not in chunk.text
    assert [line for line in chunk.text.splitlines() if line.startswith("[[")] == [
        "[[CODE 1 python]]", "[[EQUATION 2]]", "[[CODE 3]]",
    ]  # fmt: skip
    assert chunk.outline().splitlines() == [
        "[[CODE 1 python]] xs = [3, 1] ... xs.sort()", "[[EQUATION 2]] O(n \\log n)", "[[CODE 3]] ``` ... ```",
    ]  # fmt: skip


def test_blocks_come_back_byte_for_byte_in_the_place_of_their_markers():
    [chunk] = inside(PAGE)
    reply = "# Sorting\n\nLists: [[CODE 1 python]]\ncost\n[[EQUATION 2]]\n[[CODE 3]]"
    assert chunk.restored(reply) == (
        "# Sorting\n\nLists:\n\n```python\nxs = [3, 1]\n\nxs.sort()\n```\n\ncost\n\n$$\nO(n \\log n)\n$$\n\n"
        "````\n```\nnested\n```\n````"
    )


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ("[[CODE 1 python]] [[EQUATION 2]]", "markers"),
        ("[[CODE 1 python]] [[CODE 3]] [[EQUATION 2]]", "markers"),
        ("[[CODE 1 python]] [[EQUATION 2]] [[CODE 3]] [[CODE 3]]", "markers"),
        ("[[CODE 1]] [[EQUATION 2]] [[CODE 3]]", "markers"),
        ("[[CODE 1 python]] [[EQUATION 2]] [[CODE 3]] [[CODE 4]]", "markers"),
        ("", "markers"),
        ("[[CODE 1 python]] [[EQUATION 2]] [[CODE 3]]\n```\nx\n```", "code block added"),
    ],
)
def test_any_other_reply_is_refused(reply, told):
    [chunk] = inside(PAGE)
    with pytest.raises(DropError, match=told):
        chunk.restored(reply)


def test_a_page_with_text_that_looks_like_a_marker_has_others():
    [chunk] = inside("see [[CODE 1]] and [[CODEX 2]]\n\n```\nx\n```")
    assert [block.marker for block in chunk.blocks] == ["[[CODEXX 1]]"]
    assert chunk.restored(chunk.text) == "see [[CODE 1]] and [[CODEX 2]]\n\n```\nx\n```"


@pytest.mark.parametrize(
    ("block", "marker"),
    [
        ("~~~ruby\nputs 1\n```\n~~~", "[[CODE 1 ruby]]"),
        ("  ```sh\n  ls\n```\n  ```", "[[CODE 1 sh]]"),
        ('```python title="a.py" {1,3}\nx = 1\n```', "[[CODE 1 python]]"),
        ("$$ x^2 + y^2 = z^2 $$", "[[EQUATION 1]]"),
        ("\\[ x^2 \\]", "[[EQUATION 1]]"),
        ("\\[\nx^2\n\\]", "[[EQUATION 1]]"),
        ("```sh\r\nls\r\n```\r", "[[CODE 1 sh]]"),
        ("$$\r\nx^2\r\n$$\r", "[[EQUATION 1]]"),
        ("```c\nint x;\n$$\nint y;\n```", "[[CODE 1 c]]"),
    ],
)
def test_blocks_are_known_in_all_their_forms(block, marker):
    [chunk] = inside(f"Before.\n\n{block}\n\nAfter $x$ and `y`.")
    assert chunk.text == f"Before.\n\n{marker}\n\nAfter $x$ and `y`."
    assert chunk.restored(chunk.text) == f"Before.\n\n{block}\n\nAfter $x$ and `y`."


def test_an_equation_of_one_line_is_its_own_outline():
    [chunk] = inside("a\n\n$$ x^2 $$")
    assert chunk.outline() == "[[EQUATION 1]] $$ x^2 $$"


@pytest.mark.parametrize("open_fence", ["```python\nx = 1", "$$\nx = 1", "```\n\n~~~"])
def test_what_nothing_closes_is_text_and_hides_nothing_behind_it(open_fence):
    chunks = inside(f"{open_fence}\n\nwords\n\n````c\nint x;\n````")
    assert [block.text for chunk in chunks for block in chunk.blocks] == ["````c\nint x;\n````"]


WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="`$~[\n\r"), max_size=30), max_size=4)
CODE = st.tuples(
    st.sampled_from(["```", "`````"]), st.sampled_from(["", "python", "c++"]), st.text("ab \t`$[]\n", max_size=30)
)


def block(made):
    fence, language, code = made
    lines = "\n".join(line if line.rstrip(" \t") != fence else "x" for line in code.split("\n"))
    return f"{fence}{language}\n{lines}\n{fence}"


@given(
    parts=st.lists(st.one_of(WORDS.map("\n".join), CODE.map(block), st.just("$$\nx^2\n$$")), max_size=8),
    longest=st.integers(1, 200),
)
def test_a_model_that_repeats_what_it_sees_changes_no_block(parts, longest):
    page = "\n\n".join(parts)
    chunks = inside(page, longest)
    restored = "\n\n".join(chunk.restored(chunk.text) for chunk in chunks)
    assert restored.split() == page.split()
    blocks = [block.text for chunk in chunks for block in chunk.blocks]
    assert blocks == [part for part in parts if part.startswith(("`", "$$"))]
    place = 0
    for one in blocks:
        place = restored.index(one, place) + len(one)


def test_chunks_end_between_blocks_and_paragraphs():
    page = "\n\n".join(f"paragraph {i} " + "word " * 10 + f"\n\n```\n{'code ' * 30}{i}\n```" for i in range(20))
    chunks = inside(page, 200)
    assert len(chunks) > 5
    assert all(len(chunk.text) <= 200 for chunk in chunks)
    assert sum(len(chunk.blocks) for chunk in chunks) == 20
    numbers = [block.marker for chunk in chunks for block in chunk.blocks]
    assert len(set(numbers)) == 20


def test_a_paragraph_too_long_for_a_chunk_is_divided_between_lines():
    lines = [f"line {i} of many" for i in range(100)]
    chunks = inside("\n".join(lines), 100)
    assert max(len(chunk.text) for chunk in chunks) <= 120
    assert "\n".join(chunk.text for chunk in chunks).split("\n") == lines


def test_a_page_of_open_fences_takes_linear_time():
    page = "".join(f"```lang{i}\nx\n" for i in range(50_000))
    begin = time.process_time()
    assert sum(len(chunk.blocks) for chunk in inside(page)) == 0
    assert time.process_time() - begin < 5
