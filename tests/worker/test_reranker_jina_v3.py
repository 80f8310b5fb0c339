"""jina-reranker-v3 gives upstream's numbers on a small checkpoint, and each check can fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from registry.errors import EncodeError, FleetError, UsageError, WeightsError
from registry.models import model
from registry.settings import Settings, load_settings
from tests.checkpoints import jina_reranker_v3 as recipe
from worker.rerankers import jina_v3, tokens
from worker.rerankers.base import Ranking
from worker.rerankers.factory import load_reranker, warm_up
from worker.rerankers.jina_v3 import JinaRerankerV3
from worker.weights import locate

#: Largest difference of a score from upstream's, float32.
TOLERANCE = 1e-4
NAME = "jina-reranker-v3"
REFERENCE = json.loads(
    (Path(__file__).parents[1] / "references" / "jina_reranker_v3.json").read_text(encoding="utf-8")
)
CASES = recipe.cases()
#: Cheap cases, on which wrong ways to build the prompt are tried.
SHORT = ("two candidates", "odd texts", "duplicates")


class Remembering(JinaRerankerV3):
    """Keeps the states of each prompt, so that what comes after them can be tried in many wrong ways."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.known: dict[bytes, torch.Tensor] = {}

    def _states(self, ids: tokens.Ids) -> torch.Tensor:
        key = ids.tobytes()
        if key not in self.known:
            self.known[key] = super()._states(ids)
        return self.known[key]


def settings_for(path: Path) -> Settings:
    return load_settings(device="cpu", fake_weights=True, weights={NAME: path})


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return recipe.build(tmp_path_factory.mktemp("jina-reranker-v3"), shards=2)


@pytest.fixture(scope="module")
def reranker(snapshot: Path) -> Iterator[Remembering]:
    settings = settings_for(snapshot)
    loaded = Remembering(model(NAME), locate(model(NAME), settings), settings)
    yield loaded
    loaded.close()


def ranked(
    reranker: JinaRerankerV3, name: str, block: int = 0, changes: dict[str, int] | None = None
) -> Ranking:
    """A case under its limits, or under changed ones."""
    case = CASES[name]
    limits = replace(
        reranker._limits,
        **{
            "max_document_tokens": case.document_tokens,
            "max_query_tokens": case.query_tokens,
            **(changes or {}),
        },
    )
    with (
        mock.patch.object(reranker, "_limits", limits),
        mock.patch.object(reranker._tokenizer, "max_tokens", case.max_tokens),
    ):
        return reranker.rank(case.query, case.documents, block)


def difference(found: Ranking, name: str) -> float:
    """Largest difference of a score from upstream's; infinite where the order is another."""
    wanted = REFERENCE["cases"][name]
    if list(found.order) != wanted["order"]:
        return float("inf")
    return float(np.abs(np.subtract(found.scores, wanted["scores"])).max())


def test_the_recipe_makes_the_checkpoint_that_the_numbers_are_of() -> None:
    assert recipe.digest() == REFERENCE["checkpoint"]
    assert set(REFERENCE["cases"]) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_scores_and_order_are_upstreams(reranker: Remembering, name: str) -> None:
    found = ranked(reranker, name)
    off = difference(found, name)
    print(f"{name}: scores off by {off:.1e}, tolerance {TOLERANCE:.0e}; blocks {found.blocks}")
    assert off <= TOLERANCE
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert sum(found.blocks) == len(CASES[name].documents)


def test_cases_cover_what_they_say(reranker: Remembering) -> None:
    limits = model(NAME).reranking
    assert limits is not None
    assert (limits.block, limits.max_document_tokens, limits.max_query_tokens) == (125, 2048, 512)
    assert ranked(reranker, "125 candidates").blocks == (125,)
    assert ranked(reranker, "130 candidates in two blocks").blocks == (125, 5)
    assert len(ranked(reranker, "blocks by tokens").blocks) > 2
    assert len(ranked(reranker, "a long document in blocks by tokens").blocks) > 1
    assert ranked(reranker, "a document beyond the model's own limit").truncated == (0,)
    # 255 and 256 tokens are not cut, 257 are.
    assert ranked(reranker, "documents beyond a limit").truncated == (0, 4, 5)
    assert ranked(reranker, "a query beyond a limit").query_truncated
    assert not ranked(reranker, "a query at a limit").query_truncated
    assert "\ufffd" in reranker._tokenizer.fit(CASES["documents beyond a limit"].documents[5], 256).text


def test_no_candidates_give_none(reranker: Remembering) -> None:
    assert ranked(reranker, "one candidate").order == (0,)
    assert reranker.rank("anything", [], 0) == Ranking((), (), ())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shift", [-1, 1])
def test_the_state_of_a_neighbouring_token_would_be_seen(
    reranker: Remembering, name: str, shift: int
) -> None:
    right = reranker._marks
    with mock.patch.object(reranker, "_marks", lambda ids, count: right(ids, count) + shift):
        assert difference(ranked(reranker, name), name) > TOLERANCE


def _padded(states: Callable[..., torch.Tensor], decoder: Any, *, positions: bool) -> Any:
    """States of a prompt that was padded on the left: with the mask ignored, or only its positions."""

    def padded(ids: tokens.Ids) -> torch.Tensor:
        width = 7
        row = torch.from_numpy(np.concatenate([np.zeros(width, np.int64), ids]))[None]
        mask = torch.ones_like(row)
        if positions:
            mask[:, :width] = 0
        with torch.inference_mode():
            found = decoder(input_ids=row, attention_mask=mask, use_cache=False)
        return found.last_hidden_state[0, width:]

    return padded


def test_padding_may_not_matter_and_an_ignored_mask_would_be_seen(reranker: Remembering) -> None:
    for name in SHORT:
        with mock.patch.object(
            reranker, "_states", _padded(reranker._states, reranker._decoder, positions=True)
        ):
            assert difference(ranked(reranker, name), name) <= TOLERANCE
        with mock.patch.object(
            reranker, "_states", _padded(reranker._states, reranker._decoder, positions=False)
        ):
            assert difference(ranked(reranker, name), name) > TOLERANCE


@dataclass(frozen=True)
class Wrong:
    """One wrong way, and the cases that must tell it."""

    #: What is replaced: an attribute of the reranker, of its module or of the tokens' module.
    attribute: str
    replacement: Callable[[Remembering], Any]
    cases: tuple[str, ...]
    block: int = 0
    changes: dict[str, int] = field(default_factory=dict)


def _positions(start: Callable[[int], np.ndarray]) -> Callable[[Remembering], Any]:
    """States under other positions; a shift of all of them alike changes nothing under RoPE."""

    def make(reranker: Remembering) -> Any:
        def states(ids: tokens.Ids) -> torch.Tensor:
            row = torch.from_numpy(ids)[None]
            positions = torch.from_numpy(start(len(ids)))[None]
            with torch.inference_mode():
                return reranker._decoder(
                    input_ids=row, position_ids=positions, use_cache=False
                ).last_hidden_state[0]

        return states

    return make


def _without_relu(reranker: Remembering) -> Any:
    return torch.nn.Sequential(reranker._projector[0], reranker._projector[2])


def _render(change: Callable[[str], str]) -> Callable[[Remembering], Any]:
    right = jina_v3.render
    return lambda _reranker: lambda *arguments: change(right(*arguments))


def _query_first(prompt: str) -> str:
    """The passages follow the query instead of going before it."""
    head, rest = prompt.split('<passage id="0">', 1)
    passages, query = rest.rsplit("<query>", 1)
    query, end = query.split("</query>", 1)
    return f'{head}<query>{query}</query>\n<passage id="0">{passages.rstrip()}{end}'


def _another_word(prompt: str) -> str:
    """The first passage begins otherwise."""
    return prompt.replace('<passage id="0">\n', '<passage id="0">\nan ')


def _renumbered(prompt: str) -> str:
    """The first passage has another number."""
    return prompt.replace('<passage id="0">', '<passage id="1">')


def _without_weights(_reranker: Remembering) -> Any:
    def join(queries: Sequence[Any], documents: Sequence[Any]) -> Any:
        query, many = np.mean(queries, axis=0), np.concatenate(documents)
        return many @ query / np.linalg.norm(many, axis=1) / np.linalg.norm(query)

    return join


def _each_its_own_query(_reranker: Remembering) -> Any:
    return lambda queries, documents: np.concatenate(
        [
            d @ q / np.linalg.norm(d, axis=1) / np.linalg.norm(q)
            for q, d in zip(queries, documents, strict=True)
        ]
    )


JOINED = ("130 candidates in two blocks", "blocks by tokens", "a long document in blocks by tokens")
WRONG = {
    "one position is skipped": Wrong(
        "_states", _positions(lambda n: np.arange(n) + (np.arange(n) > n // 2)), SHORT
    ),
    "positions twice as far apart": Wrong("_states", _positions(lambda n: np.arange(n) * 2), SHORT),
    "no positions": Wrong("_states", _positions(lambda n: np.zeros(n, np.int64)), SHORT),
    "no ReLU": Wrong("_projector", _without_relu, tuple(CASES)),
    "blocks of 64": Wrong("", lambda _: None, ("125 candidates",), 64),
    "joined without weights": Wrong("join", _without_weights, JOINED),
    "not joined": Wrong("join", _each_its_own_query, JOINED),
    "the query first": Wrong("render", _render(_query_first), SHORT),
    "the query not in the head": Wrong(
        "render",
        lambda _: lambda query, *rest: _RENDER(query, *rest).replace(f"relevance to query: {query}", "", 1),
        SHORT,
    ),
    "a passage of another number": Wrong(
        "render", _render(lambda prompt: prompt.replace('id="0"', 'id="1"')), SHORT
    ),
    "no line break after a passage": Wrong(
        "render", _render(lambda prompt: prompt.replace("\n</passage>", "</passage>")), SHORT
    ),
    "one word of the system text": Wrong(
        "render", _render(lambda prompt: prompt.replace("search relevance", "search relevant", 1)), SHORT
    ),
    "one token of a passage": Wrong("render", _render(_another_word), ("two candidates", "64 candidates")),
    "documents cut a token early": Wrong(
        "", lambda _: None, ("documents beyond a limit",), changes={"max_document_tokens": 255}
    ),
    "documents cut a token late": Wrong(
        "", lambda _: None, ("documents beyond a limit",), changes={"max_document_tokens": 257}
    ),
    "documents cut at another limit than the model's own": Wrong(
        "",
        lambda _: None,
        ("a document beyond the model's own limit",),
        changes={"max_document_tokens": 2049},
    ),
    "query cut a token early": Wrong(
        "", lambda _: None, ("a query beyond a limit", "a query at a limit"), changes={"max_query_tokens": 63}
    ),
    "query not cut": Wrong(
        "",
        lambda _: None,
        ("a query beyond a limit", "a query beyond the model's own limit"),
        changes={"max_query_tokens": 9999},
    ),
    "special tokens escaped instead of stripped": Wrong(
        "strip", lambda _: lambda text, found: _escaped(text, found), ("special tokens",)
    ),
}
_RENDER = jina_v3.render


def _escaped(text: str, special: Sequence[str]) -> str:
    for token in special:
        text = text.replace(token, token.replace("|", ""))
    return text


@pytest.mark.parametrize("way", WRONG)
def test_a_wrong_way_would_be_seen(reranker: Remembering, way: str) -> None:
    wrong = WRONG[way]
    for name in wrong.cases:
        with ExitStack() as stack:
            if wrong.attribute:
                places = [p for p in (tokens, jina_v3, reranker) if hasattr(p, wrong.attribute)]
                replacement = wrong.replacement(reranker)
                stack.enter_context(mock.patch.object(places[-1], wrong.attribute, replacement))
            off = difference(ranked(reranker, name, wrong.block, wrong.changes), name)
        print(f"{way}, {name}: scores off by {off:.1e}, tolerance {TOLERANCE:.0e}")
        assert off > TOLERANCE


def test_special_tokens_left_in_a_text_are_an_error_not_wrong_scores(reranker: Remembering) -> None:
    with (
        mock.patch.object(tokens, "strip", lambda text, _special: text),
        pytest.raises(EncodeError, match="a prompt of 5 passages marks"),
    ):
        ranked(reranker, "special tokens")


def test_a_smaller_block_is_another_ranking_of_the_same_candidates(reranker: Remembering) -> None:
    found = ranked(reranker, "64 candidates", 10)
    assert found.blocks == (10, 10, 10, 10, 10, 10, 4)
    assert sorted(found.order) == list(range(64))
    with pytest.raises(UsageError, match="takes 1 to 125"):
        ranked(reranker, "64 candidates", 126)


def test_equal_scores_keep_the_order_given(reranker: Remembering) -> None:
    with mock.patch.object(jina_v3, "join", return_value=np.tile([0.5, 0.1], 32)):
        assert ranked(reranker, "64 candidates").order == (*range(0, 64, 2), *range(1, 64, 2))


def test_between_is_asked_before_each_pass_and_ends_the_call(reranker: Remembering) -> None:
    asked = []

    def between() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise FleetError("enough")

    case = CASES["64 candidates"]
    with pytest.raises(FleetError, match="enough"):
        reranker.rank(case.query, case.documents, 30, between)


def test_a_vector_that_is_no_number_is_an_error(reranker: Remembering) -> None:
    broken = torch.nn.Sequential(*reranker._projector, torch.nn.ReLU(), torch.nn.Threshold(1e9, 0.0))
    with (
        mock.patch.object(reranker, "_projector", broken),
        pytest.raises(EncodeError, match="candidate 0 no finite score"),
    ):
        ranked(reranker, "two candidates")


def test_warm_up_knows_a_model_from_noise(reranker: Remembering) -> None:
    assert warm_up(reranker, trained=False) > 0
    same = torch.nn.Sequential(*reranker._projector, torch.nn.Threshold(1e9, 1.0))
    with mock.patch.object(reranker, "_projector", same), pytest.raises(WeightsError, match="the same score"):
        warm_up(reranker, trained=False)
    # Random weights do not find the answer: they would not pass for the model.
    with pytest.raises(WeightsError, match="does not answer"):
        warm_up(reranker, trained=True)


class TestLoading:
    """What is not the model is refused, with the reason."""

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        return recipe.build(tmp_path / "snapshot")

    def refused(self, path: Path, match: str) -> None:
        with pytest.raises(WeightsError, match=match):
            load_reranker(NAME, settings_for(path))

    def change(self, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    def test_a_missing_tensor(self, broken: Path) -> None:
        self.change(broken, lambda t: t.__delitem__("model.layers.1.self_attn.q_norm.weight"))
        self.refused(broken, r"lacks tensors layers\.1\.self_attn\.q_norm\.weight")

    def test_a_foreign_tensor(self, broken: Path) -> None:
        self.change(broken, lambda t: t.update({"score.weight": np.zeros((2, 1024), np.float32)}))
        self.refused(broken, r"has the foreign tensors score\.weight")

    def test_a_projector_of_256(self, broken: Path) -> None:
        self.change(broken, lambda t: t.update({"projector.2.weight": t["projector.2.weight"][:256].copy()}))
        self.refused(broken, r"the projector of .* \(256, 512\)")

    def test_a_projector_with_biases(self, broken: Path) -> None:
        self.change(broken, lambda t: t.update({"projector.0.bias": np.zeros(512, np.float32)}))
        self.refused(broken, "the projector of")

    def test_no_projector(self, broken: Path) -> None:
        self.change(broken, lambda t: t.__delitem__("projector.0.weight"))
        self.refused(broken, "the projector of")

    def test_other_special_tokens(self, broken: Path) -> None:
        text = (broken / "tokenizer.json").read_text()
        (broken / "tokenizer.json").write_text(text.replace("<|rerank_token|>", "<|other|>"))
        self.refused(broken, r"does not know <\|rerank_token\|> as one token")

    def test_other_ids_than_the_registrys(self, broken: Path) -> None:
        with pytest.raises(WeightsError, match="the id 719, not 151670"):
            tokens.PromptTokenizer(model(NAME), broken)

    @pytest.mark.parametrize("limit", [9, 10, 11, 40])
    @pytest.mark.parametrize("around", [0, 1])
    def test_texts_are_cut_as_transformers_cuts_them(self, broken: Path, around: int, limit: int) -> None:
        from tokenizers import Tokenizer, processors
        from transformers import PreTrainedTokenizerFast

        file = str(broken / "tokenizer.json")
        if around:
            found = Tokenizer.from_file(file)
            end = ("<|im_end|>", found.token_to_id("<|im_end|>"))
            found.post_processor = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[end])
            found.save(file)
        theirs = PreTrainedTokenizerFast(tokenizer_file=file)
        ours = tokens.PromptTokenizer(model(NAME), broken, own_ids=True)
        for text in ("0123456789", "01234567", "", "é" * 10, "the river and the bridge " * 9):
            ids = theirs(text, truncation=True, max_length=limit)["input_ids"]
            fitted = ours.fit(text, limit)
            assert fitted.tokens == len(ids)
            assert fitted.text == (theirs.decode(ids) if len(ids) >= limit else text)
            assert fitted.cut == (len(theirs(text)["input_ids"]) > limit)

    def test_a_vocabulary_without_the_special_tokens(self, broken: Path) -> None:
        config = json.loads((broken / "config.json").read_text()) | {"vocab_size": 700}
        (broken / "config.json").write_text(json.dumps(config))
        name = "model.embed_tokens.weight"
        self.change(broken, lambda t: t.update({name: t[name][:700].copy()}))
        self.refused(broken, "embeddings for 700 tokens and a tokenizer of 721")

    def test_the_tokenizers_own_limit_is_read(self, tmp_path: Path) -> None:
        path = recipe.build(tmp_path / "short", max_tokens=3200)
        assert tokens.PromptTokenizer(model(NAME), path, own_ids=True).max_tokens == 3200
        path = recipe.build(tmp_path / "endless", max_tokens=10**30)
        assert tokens.PromptTokenizer(model(NAME), path, own_ids=True).max_tokens == 131072
