"""The inputs of the examples on upstream's cards: what the numbers in `ModelSpec.published` were made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """Queries against documents, as rows against columns of the published similarities."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    #: The model's task they were embedded under; empty: its default, or it has none.
    task: str = ""


@dataclass(frozen=True)
class ScoredExample:
    """Candidates of one pass of a reranker and the scores that somebody got."""

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...]
    #: Whose numbers these are, and how far they are from a float32 pass.
    source: str
    tolerance: float


#: The texts are upstream's, letter by letter: a spelling mended is another number.
EXAMPLES: dict[str, Example] = {
    "jina-code-embeddings-1.5b": Example(
        queries=("print hello world in python", "initialize array of 5 zeros in c++"),
        documents=("print('Hello World!')", "int arr[5] = {0, 0, 0, 0, 0};"),
        task="nl2code",
    ),
    "bge-m3": Example(
        queries=("What is BGE M3?", "Defination of BM25"),
        documents=(
            "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector "
            "interaction.",
            "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query "
            "terms appearing in each document",
        ),
    ),
}

#: The card shows no scores for its example; vLLM's tests do, for the card's six candidates in one pass.
SCORED: dict[str, ScoredExample] = {
    "jina-reranker-v3": ScoredExample(
        query="What are the health benefits of green tea?",
        documents=(
            "Green tea contains antioxidants called catechins that may help reduce inflammation and protect "
            "cells from damage.",
            "El precio del café ha aumentado un 20% este año debido a problemas en la cadena de suministro.",
            "Studies show that drinking green tea regularly can improve brain function and boost metabolism.",
            "Basketball is one of the most popular sports in the United States.",
            "绿茶富含儿茶素等抗氧化剂，可以降低心脏病风险，还有助于控制体重。",
            "Le thé vert est riche en antioxydants et peut améliorer la fonction cérébrale.",
        ),
        scores=(0.294921875, -0.16015625, 0.189453125, -0.1708984375, 0.2255859375, 0.1640625),
        source="vLLM's tests, in bfloat16",
        tolerance=0.02,
    ),
}
