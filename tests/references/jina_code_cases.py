"""What jina_code.json has numbers for."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.jina_code import MAX_TOKENS, make_tokenizer
from tests.references.texts import texts

REFERENCES = Path(__file__).with_name("jina_code.json")
#: The model's prompts as its card lists them: by task, those of the query and of the document.
PROMPTS = {
    "nl2code": (
        "Find the most relevant code snippet given the following query:\n",
        "Candidate code snippet:\n",
    ),
    "qa": ("Find the most relevant answer given the following question:\n", "Candidate answer:\n"),
    "code2code": (
        "Find an equivalent code snippet given the following code snippet:\n",
        "Candidate code snippet:\n",
    ),
    "code2nl": (
        "Find the most relevant comment given the following code snippet:\n",
        "Candidate comment:\n",
    ),
    "code2completion": (
        "Find the most relevant completion given the following start of code snippet:\n",
        "Candidate completion:\n",
    ),
}
SIDES = ("query", "document")
#: By the name that sentence-transformers knows them under.
NAMED = {f"{task}_{side}": both[i] for task, both in PROMPTS.items() for i, side in enumerate(SIDES)}
#: Lengths in tokens hold for documents under nl2code.
TEXTS = texts(MAX_TOKENS, len(make_tokenizer().encode(PROMPTS["nl2code"][1]).ids)) | {
    "specials inside": "red <|im_start|> tree <|endoftext|> house <|im_end|> water<|image_pad|>",
    "added tokens inside": "<|fim_prefix|>def value <tool_call> return<|repo_name|>",
}
#: Texts that every prompt is tried on.
SHORT = ("two words", "code", "emoji", "specials inside")
#: Widths that the vector may be cut to, all of it among them; and the texts that shows on.
WIDTHS = (128, 256, 512, 1024, 1536)
CUT = ("one word", "code", "at the limit")
