"""Numbers with 万 and 億 against their English ones: the right ones pass, all others do not."""

import pytest

from nano3.curate.ask.answers import DropError
from nano3.curate.steps.llm.replies import check_unchanged


@pytest.mark.parametrize(
    ("source", "reply"),
    [
        ("人口は3万人", "30,000 people"),
        ("人口３万", "a population of 30000"),
        ("约3万人", "about 30 thousand people"),
        ("约3万人", "about thirty thousand people"),
        ("1万年前", "ten thousand years ago"),
        ("1.5亿元", "150 million yuan"),
        ("1.5亿元", "one hundred and fifty million yuan"),
        ("1億2000万円", "120 million yen"),
        ("1億2,345万6789", "123,456,789"),
        ("3万5000", "35,000"),
        ("3千万", "30 million"),
        ("5百万", "5,000,000"),
        ("2千人", "2,000 people"),
        ("10 万 和 20 万", "100,000 and 200 thousand"),
        ("3千克和2千米", "3 kg and 2 km"),
        ("2兆円", "2 trillion yen"),
        ("1.2万", "12,000"),
        ("2020年有3万人", "30,000 people in 2020"),
    ],
)
def test_numbers_that_are_the_same_pass(source, reply):
    check_unchanged(source, reply)


@pytest.mark.parametrize(
    ("source", "reply"),
    [
        ("人口は3万人", "300,000 people"),
        ("人口は30万人", "30,000 people"),
        ("1.5亿元", "15 million yuan"),
        ("1億2000万円", "100 million yen"),
        ("3万和4万", "30,000 and 30,000"),
        ("3万", "many"),
        ("25", "25 thousand and 30,000"),
    ],
)
def test_numbers_that_are_not_do_not(source, reply):
    with pytest.raises(DropError, match="numbers changed"):
        check_unchanged(source, reply)
