"""The wordings of RULER (arXiv 2404.06654; scripts/data/synthetic/constants.py of github.com/NVIDIA/RULER).

They define the benchmark and are kept to the letter, as of the revision in reference.py. `niah` has two forms: the
reference derives the singular from the plural by replacing words.
"""

NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
"""The sentences of a line of noise."""
FILLER = tuple(" ".join(NOISE).split())
"""Its words: they fill space that is too small for a unit of haystack."""

NEEDLE = "One of the special magic {kind}s for {key} is: {value}."

NIAH_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?"
)
NIAH_ONE_PREFIX = " The special magic {kind} for {query} mentioned in the provided text is"

NIAH_MANY = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind}s afterwards.\n{context}\n"
    "What are all the special magic {kind}s for {query} mentioned in the provided text?"
)
NIAH_MANY_PREFIX = " The special magic {kind}s for {query} mentioned in the provided text are"

VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{n_variables} variables are assigned the value {query}, they are: "
)

CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"

FWE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"

QA_DOCUMENT = "Document {number}:\n{document}"
QA = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}"
)
QA_PREFIX = " Answer:"
