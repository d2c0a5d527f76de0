"""Turn questions about the invented people into contexts in which the answer tokens are measured.

A source is `facts:<people>:<templates>`.

- `people` is `forget` (the 40 people that the reference model `embedded-retrained` was not trained on), `retain` (120 people available as
  retain data) or `strangers` (40 people used on TEST only, to measure what an edit does to people outside all selection and tuning data).
  `forget/16` are the first 16 of a group, for a model that was taught fewer people.
- `templates` is `known` (sentences that biographies contain) or `unseen` (sentences that no biography contains).

Each fact is asked through different known templates in each split, and through the same unseen templates in every split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import Split
from mtsae_lens.data.people import GROUPS, TRAIN_TEMPLATES, VALUES, Question, is_group, make_questions, people_of
from mtsae_lens.data.prompts import encode_prompt
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError, nearest

PREFIX = "facts:"
_TEMPLATES = ("known", "unseen")
SOURCES = tuple(f"{PREFIX}{people}:{templates}" for people in GROUPS for templates in _TEMPLATES)
SPLITS: tuple[Split, ...] = ("select", "tune", "test")


def is_question_source(source: str) -> bool:
    """Return whether a source names questions rather than text.

    Args:
        source: name of a source.
    """
    return source.startswith(PREFIX)


def is_test_only(source: str) -> bool:
    """Return whether a source asks about people who are held out from selection and tuning.

    Args:
        source: name of a source.
    """
    return source.startswith((f"{PREFIX}strangers:", f"{PREFIX}strangers/"))


def people_asked_about(source: str) -> set[str]:
    """Return the names of the people whom a source asks about; empty if there is no such group.

    Args:
        source: `facts:<people>:<templates>`.
    """
    group = source.removeprefix(PREFIX).rpartition(":")[0]
    return {person.name for person in people_of(group)} if is_group(group) else set()


def is_same_on_every_split(source: str) -> bool:
    """Return whether a source asks the same questions on every split, because its templates are too few to share out.

    Args:
        source: name of a source.
    """
    return is_question_source(source) and source.endswith(":unseen")


def read_questions(source: str, split: Split, cutter: ContextCutter, max_questions: int, *, seed: int = 0) -> TokenTable:
    """Draw up to `max_questions` questions of a split at random, as contexts.

    Args:
        source: `facts:<people>:<templates>`.
        split: `select`, `tune` or `test`.
        cutter: the tokenizer and the length of a context.
        max_questions: largest number of questions.
        seed: seed of the draw.

    Returns:
        One context per question, in which only the answer is measured; `documents` are the names of the people.

    Raises:
        DataError: the source does not exist, or a question is longer than a context.
    """
    return question_table(source, draw_questions(source, split, max_questions, seed=seed), cutter)


def read_wrong_answers(
    source: str, split: Split, cutter: ContextCutter, max_questions: int, *, n_wrong: int = 4, seed: int = 0
) -> tuple[TokenTable, ...]:
    """Return the questions of `read_questions`, given the same arguments, with wrong answers.

    The wrong answers to a question are other values of the same attribute; they differ from each other and from the right answer.

    Args:
        source: as for `read_questions`.
        split: as for `read_questions`.
        cutter: as for `read_questions`.
        max_questions: as for `read_questions`.
        n_wrong: wrong answers per question.
        seed: seed of the draw.

    Returns:
        `n_wrong` tables; row `i` of each asks the same question as row `i` of `read_questions`.

    Raises:
        DataError: see `read_questions`; or there are fewer than `n_wrong` wrong answers.
    """
    questions = draw_questions(source, split, max_questions, seed=seed)
    return tuple(question_table(source, wrong, cutter) for wrong in wrong_answers(questions, n_wrong, seed=seed))


def wrong_answers(questions: Sequence[Question], n_wrong: int, *, seed: int = 0) -> tuple[tuple[Question, ...], ...]:
    """Return the questions `n_wrong` times, each time with a different wrong answer drawn at random.

    Args:
        questions: the questions with their right answers.
        n_wrong: wrong answers per question.
        seed: seed of the draw.

    Returns:
        `n_wrong` tuples of questions, each in the given order.

    Raises:
        DataError: there are fewer than `n_wrong` wrong answers.
    """
    most = min(map(len, VALUES.values())) - 1
    if not 1 <= n_wrong <= most:
        raise DataError(f"expected n_wrong from 1 to {most}, got {n_wrong}; give a number in this range")
    rng = random.Random(seed)
    drawn = [rng.sample([v for v in VALUES[q.attribute] if v != q.answer.strip()], n_wrong) for q in questions]
    return tuple(
        tuple(replace(question, answer=" " + values[k]) for question, values in zip(questions, drawn, strict=True))
        for k in range(n_wrong)
    )


def draw_questions(source: str, split: Split, max_questions: int, *, seed: int = 0) -> list[Question]:
    """Draw the questions of `read_questions`, before they are tokenized.

    Args:
        source: as for `read_questions`.
        split: as for `read_questions`.
        max_questions: largest number of questions.
        seed: seed of the draw.

    Raises:
        DataError: the source does not exist or has no such split.
    """
    _, _, asked = source.partition(PREFIX)
    group, _, templates = asked.rpartition(":")
    if not source.startswith(PREFIX) or not is_group(group) or templates not in _TEMPLATES:
        raise DataError(f"expected known questions, got {source!r}.{nearest(source, SOURCES)}")
    if split not in SPLITS:
        raise DataError(
            f"expected a split of questions ({', '.join(SPLITS)}), got {split!r}; to train, read the text 'people' or 'people_forget'"
        )
    if is_test_only(source) and split != "test":
        raise DataError(
            f"{source}: expected split 'test', got {split!r}: these people are held out from selection and tuning; read them on TEST"
        )
    questions = [
        question
        for question in make_questions(people_of(group))
        if question.held_out_template == (templates == "unseen") and (templates == "unseen" or _of_split(question, split))
    ]
    random.Random(seed).shuffle(questions)
    return questions[:max_questions]


def _of_split(question: Question, split: Split) -> bool:
    """Return whether a known template of a fact belongs to a split. A third of the templates, drawn at random, goes to each split."""
    prompts = [template.split(" {value}")[0].format(name=question.name) for template in TRAIN_TEMPLATES[question.attribute]]
    random.Random(f"{question.name} {question.attribute}").shuffle(prompts)
    return prompts.index(question.prompt) * len(SPLITS) // len(prompts) == SPLITS.index(split)


def question_table(corpus: str, questions: Sequence[Question], cutter: ContextCutter) -> TokenTable:
    """Build one context per question: the prompt, the answer (measured) and padding on the right.

    Args:
        corpus: name of the table.
        questions: the questions.
        cutter: the tokenizer and the length of a context.

    Returns:
        The contexts; `documents` are the names of the people.

    Raises:
        DataError: a question is longer than a context, or the tokenizer has no token to pad with.
    """
    tokenizer = cutter.tokenizer
    padding = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if padding is None:
        raise DataError(
            "expected a tokenizer with an EOS or BOS token to pad questions with, got neither; add one to the tokenizer"
        )
    prompts = [encode_prompt(cutter, q.prompt, "a question's prompt") for q in questions]
    without_bos = replace(cutter, prepend_bos=False)
    answers = [encode_prompt(without_bos, q.answer, "a question's answer") for q in questions]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    if length > cutter.context_size:
        raise DataError(
            f"{corpus}: expected questions of at most {cutter.context_size} tokens, got {length}; give context_size={length} or more, "
            "with which the SAE is trained"
        )
    tokens = torch.full((len(questions), length), padding, dtype=torch.long)
    counted = torch.zeros(len(questions), length, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        counted[row, len(prompt) : end] = True
    return TokenTable(corpus, tokens, tuple(question.name for question in questions), counted)
