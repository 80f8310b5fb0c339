"""The reranker's input format: one prompt shows it the query and every candidate of a pass.

The model was trained on exactly these words and line breaks; they are data like its weights.
"""

from __future__ import annotations

from collections.abc import Sequence

_SYSTEM = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant "
    "they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage "
    "satisfies the intent. If an instruction is provided, you should follow the instruction when determining "
    "the ranking."
)
_HEAD = (
    f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n"
    "I will provide you with {count} passages, each indicated by a numerical identifier. "
    "Rank the passages based on their relevance to query: {query}\n"
)
_PASSAGE = '<passage id="{position}">\n{document}{mark}\n</passage>\n'
#: The query comes last, where it has read every passage.
_TAIL = "<query>\n{query}{mark}\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def render(query: str, documents: Sequence[str], embed_token: str, rerank_token: str) -> str:
    """The prompt of one pass; passages are numbered from 0. Texts must have gone through `strip`.

    `embed_token` ends each passage, `rerank_token` the query; their states are what is compared.
    """
    passages = (
        _PASSAGE.format(position=position, document=document, mark=embed_token)
        for position, document in enumerate(documents)
    )
    head = _HEAD.format(count=len(documents), query=query)
    return head + "".join(passages) + _TAIL.format(query=query, mark=rerank_token)


def strip(text: str, tokens: Sequence[str]) -> str:
    """The text without any of the tokens, those included that a removal puts together.

    A token left in a text would be one passage too many, and every score after it another passage's.
    """
    before = None
    while text != before:
        before = text
        for token in tokens:
            text = text.replace(token, "")
    return text
