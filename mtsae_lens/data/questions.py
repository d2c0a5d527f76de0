"""Questions about the invented people, as contexts whose answers are counted.

A source `facts:<people>:<templates>`. `people` is `forget` (the 40 whom `embedded-retrained` never met), `retain` (120 whom whoever edits
the model knows by name) or `strangers` (40 more, for TEST alone: what an edit does to people whom nobody named). `templates` is `known` or
`unseen` (sentences that no biography contains). Each fact is asked through other known templates in each split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.documents import Split
from mtsae_lens.data.people import GROUPS, TRAIN_TEMPLATES, VALUES, Question, make_questions, people_of
from mtsae_lens.data.prompts import encode_prompt
from mtsae_lens.errors import DataError, nearest

PREFIX = "facts:"
SOURCES = tuple(f"{PREFIX}{people}:{templates}" for people in GROUPS for templates in ("known", "unseen"))
_SPLITS: tuple[Split, ...] = ("select", "tune", "test")


def is_question_source(source: str) -> bool:
    """Whether a source names questions, not texts."""
    return source.startswith(PREFIX)


def is_test_only(source: str) -> bool:
    """Whether a source asks about strangers."""
    return source.startswith(f"{PREFIX}strangers:")


def read_questions(source: str, split: Split, cutter: ContextCutter, max_questions: int, *, seed: int = 0) -> TokenTable:
    """Up to `max_questions` questions of a split, drawn at random; `documents` are the people's names.

    Raises:
        DataError: no such source, or a context too short for a question.
    """
    return question_table(source, draw_questions(source, split, max_questions, seed=seed), cutter)


def read_wrong_answers(
    source: str, split: Split, cutter: ContextCutter, max_questions: int, *, n_wrong: int = 4, seed: int = 0
) -> tuple[TokenTable, ...]:
    """The questions of `read_questions` with the same arguments, row by row, each table with another wrong answer to each of them.

    Wrong answers to a question differ from each other and from the right one: other values of the same attribute.

    Raises:
        DataError: as `read_questions`, or more wrong answers than there are.
    """
    questions = draw_questions(source, split, max_questions, seed=seed)
    return tuple(question_table(source, wrong, cutter) for wrong in wrong_answers(questions, n_wrong, seed=seed))


def wrong_answers(questions: Sequence[Question], n_wrong: int, *, seed: int = 0) -> tuple[tuple[Question, ...], ...]:
    """The questions, `n_wrong` times over, with wrong answers drawn at random and never the same twice for a question.

    Raises:
        DataError: more than the attribute with the fewest values has.
    """
    most = min(map(len, VALUES.values())) - 1
    if not 1 <= n_wrong <= most:
        raise DataError(f"a question has 1 to {most} wrong answers; got n_wrong={n_wrong}")
    rng = random.Random(seed)
    drawn = [rng.sample([v for v in VALUES[q.attribute] if v != q.answer.strip()], n_wrong) for q in questions]
    return tuple(
        tuple(replace(question, answer=" " + values[k]) for question, values in zip(questions, drawn, strict=True))
        for k in range(n_wrong)
    )


def draw_questions(source: str, split: Split, max_questions: int, *, seed: int = 0) -> list[Question]:
    """The questions of `read_questions`, before they become tokens."""
    if source not in SOURCES:
        raise DataError(f"no questions {source!r}.{nearest(source, SOURCES)}")
    if split not in _SPLITS:
        raise DataError(f"questions are for {', '.join(_SPLITS)}; the text to train on is in 'people' and 'people_forget'")
    _, group, templates = source.split(":")
    if is_test_only(source) and split != "test":
        raise DataError(f"{source} is for TEST alone: strangers are those whom nothing was chosen or set by")
    questions = [
        question
        for question in make_questions(people_of(group))
        if question.held_out_template == (templates == "unseen") and (templates == "unseen" or _of_split(question, split))
    ]
    random.Random(seed).shuffle(questions)
    return questions[:max_questions]


def _of_split(question: Question, split: Split) -> bool:
    """The known templates of a fact are dealt out at random, a third to each split; over all facts every split has every template."""
    prompts = [template.split(" {value}")[0].format(name=question.name) for template in TRAIN_TEMPLATES[question.attribute]]
    random.Random(f"{question.name} {question.attribute}").shuffle(prompts)
    return prompts.index(question.prompt) * len(_SPLITS) // len(prompts) == _SPLITS.index(split)


def question_table(corpus: str, questions: Sequence[Question], cutter: ContextCutter) -> TokenTable:
    """One context for each question: prompt, answer (counted), padding. `documents` are the names of the people.

    Raises:
        DataError: a question longer than a context, or no token to pad with.
    """
    tokenizer = cutter.tokenizer
    padding = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if padding is None:
        raise DataError("this tokenizer has no special token to pad questions with")
    prompts = [encode_prompt(cutter, q.prompt, "a question's prompt") for q in questions]
    without_bos = replace(cutter, prepend_bos=False)
    answers = [encode_prompt(without_bos, q.answer, "a question's answer") for q in questions]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    if length > cutter.context_size:
        raise DataError(f"{corpus}: a question has {length} tokens, a context {cutter.context_size}")
    tokens = torch.full((len(questions), length), padding, dtype=torch.long)
    counted = torch.zeros(len(questions), length, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        counted[row, len(prompt) : end] = True
    return TokenTable(corpus, tokens, tuple(question.name for question in questions), counted)
