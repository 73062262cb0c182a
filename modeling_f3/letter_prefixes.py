"""Letters within beam search: what a beam would write next is weighed by how well it fits what the listener hears."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from transformers import LogitsProcessor


LETTER_WEIGHT = 0.5  # of the listener beside the language model, whose weight is 1
LETTER_WORTH = 1.5  # nat, of every letter: without it, what is short or says less than is heard costs least
CHOICES = 24  # tokens that a beam may go on with
BLANK, SPACE = 0, 1  # numbers of letters; the others follow


@dataclass
class Prefixes:
    """
    Beginnings of transcripts, and how likely each is to be all that the first t frames say (Graves 2006, eq. 5 to 8).

    Args:
        item: `[N]`, the audio.
        letter: `[N, T + 1]` log-probabilities after t = 0 ... T frames, of paths that end in its last letter.
        blank: `[N, T + 1]`, of those that end in a blank.
        last: `[N]`, its last letter; the blank if it has none.
        parted: `[N]`, whether a space belongs before its next letter.
        length: `[N]`, its letters.
        likelihood: `[N]`, of all transcripts that begin with it.
    """

    item: torch.Tensor
    letter: torch.Tensor
    blank: torch.Tensor
    last: torch.Tensor
    parted: torch.Tensor
    length: torch.Tensor
    likelihood: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "Prefixes":
        return Prefixes(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: torch.Tensor, others: "Prefixes") -> None:
        """Replaces some, in place."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(others, field.name)


class LetterPrefixes(LogitsProcessor):
    """
    Adds to the log-probability of each token what its letters change in the CTC likelihood of the beam's transcript (one-pass
    decoding by prefixes, arXiv 1609.06773 and 1706.02737). Summed over an answer this is log P(answer | language model) +
    `LETTER_WEIGHT` log P(answer | listener) + `LETTER_WORTH` for each letter. Tokens without spelling are not written.

    Args:
        scores: `[A, T, 1 + letters]` log-probabilities of [`F3Listener`].
        frames: `[A]`, lengths.
        spelling: `[V, S]` numbers of the letters of each token, then zeros.
        prompt_length: tokens before the answer.
        end_token_ids: those that end it.
        max_length: tokens at which a beam is cut off, prompt included; may be infinite.
    """

    def __init__(
        self,
        scores: torch.Tensor,
        frames: torch.Tensor,
        spelling: torch.Tensor,
        prompt_length: int,
        end_token_ids: Sequence[int],
        max_length: float,
    ):
        scores = scores.float().transpose(1, 2)
        within = torch.arange(scores.shape[-1], device=scores.device) < frames[:, None]
        self.frames, self.spelling = frames, spelling.long()
        self.heard = scores.masked_fill(~within[:, None], -torch.inf)  # [A, 1 + letters, T]
        self.sums = F.pad(scores.cumsum(-1), (1, 0))  # [A, 1 + letters, T + 1]
        self.prompt_length, self.max_length = prompt_length, max_length
        self.ends = torch.zeros(len(spelling), dtype=torch.bool, device=spelling.device)
        self.ends[list(end_token_ids)] = True
        letters = self.spelling > SPACE
        self.first = self.spelling.gather(1, letters.int().argmax(1, keepdim=True))[:, 0] * letters.any(1)
        self.unspelled = ~(self.spelling > 0).any(1) & ~self.ends
        self.answers = self.prefixes = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.log_softmax(-1)
        before = self._follow(input_ids[:, self.prompt_length :])
        tokens = self._choices(before, scores)
        after, places = self._write(before, tokens)
        ended = self.ends[tokens] | (input_ids.shape[1] + 1 >= self.max_length)
        likelihood = torch.where(ended, self.whole(after)[places], after.likelihood[places])
        gain = LETTER_WEIGHT * (likelihood - before.likelihood[:, None])
        gain = gain + LETTER_WORTH * (after.length[places] - before.length[:, None])
        joint = scores.gather(1, tokens) + gain.to(scores)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, joint)

    def empty(self, items: torch.Tensor) -> Prefixes:
        """Before the first letter of each of `items` `[N]`, only blanks have been heard."""
        blank = self.sums[items, BLANK]
        none = torch.zeros_like(items)
        return Prefixes(
            items, torch.full_like(blank, -torch.inf), blank, none, none > 0, none, blank.new_zeros(len(items))
        )

    def whole(self, prefixes: Prefixes) -> torch.Tensor:
        """Log-likelihood `[N]` of transcripts that have no more letters."""
        return prefixes.letter.logaddexp(prefixes.blank).gather(1, self.frames[prefixes.item, None])[:, 0]

    def _follow(self, answers: torch.Tensor) -> Prefixes:
        """The prefixes of `answers` `[N, n]`, each of which is one of the last call and a token more."""
        if self.prefixes is None:
            rows = torch.arange(len(answers), device=answers.device)
            self.prefixes = self.empty(rows // (len(answers) // len(self.frames)))
        else:
            beams = len(answers) // len(self.frames)
            now, then = answers[:, :-1].unflatten(0, (-1, beams)), self.answers.unflatten(0, (-1, beams))
            parents = (now[:, :, None] == then[:, None]).all(-1).int().argmax(-1)  # beams change places
            parents = parents + beams * torch.arange(len(now), device=answers.device)[:, None]
            after, places = self._write(self.prefixes[parents.flatten()], answers[:, -1:])
            self.prefixes = after[places[:, 0]]
        self.answers = answers
        return self.prefixes

    def _write(self, prefixes: Prefixes, tokens: torch.Tensor) -> tuple[Prefixes, torch.Tensor]:
        """
        Each prefix with a token `[N, C]` more, letter by letter; a space is heard once the next word begins. Tokens that begin
        alike share the work. Returns prefixes, and the places `[N, C]` among them.
        """
        spelled = self.spelling[tokens]
        letters = self.heard.shape[1]
        places = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
        for letter in spelled[:, :, : int((spelled > 0).sum(-1).max())].unbind(-1):
            steps, places = torch.unique(places * letters + letter, return_inverse=True)
            prefixes = self._spell(prefixes[steps // letters], steps % letters)
        return prefixes, places

    def _spell(self, prefixes: Prefixes, letters: torch.Tensor) -> Prefixes:
        """`prefixes`, changed in place, with a letter `[N]` more each, or none."""
        said = letters > SPACE
        spaced = (said & prefixes.parted & (prefixes.last > 0)).nonzero()[:, 0]
        prefixes.put(spaced, self._extend(prefixes[spaced], torch.full_like(spaced, SPACE)))
        rows = said.nonzero()[:, 0]
        prefixes.put(rows, self._extend(prefixes[rows], letters[rows]))
        prefixes.parted = (prefixes.parted & ~said) | (letters == SPACE)
        return prefixes

    def _extend(self, prefixes: Prefixes, letters: torch.Tensor) -> Prefixes:
        """
        Each prefix with a letter `[N]` more. The recursions over frames, x[t] = (x[t - 1] + y[t - 1]) p[t], are sums of
        y[s] p[s + 1] ... p[t], which are cumulative ones of y[s] / (p[1] ... p[s]).
        """
        before = self._before(prefixes, letters)
        sums, blanks = self.sums[prefixes.item, letters], self.sums[prefixes.item, BLANK]
        letter = sums[:, 1:] + (before - sums[:, :-1]).logcumsumexp(1)
        letter = F.pad(letter, (1, 0), value=-torch.inf)
        blank = blanks[:, 1:] + (letter[:, :-1] - blanks[:, :-1]).logcumsumexp(1)
        return Prefixes(
            item=prefixes.item,
            letter=letter,
            blank=F.pad(blank, (1, 0), value=-torch.inf),
            last=letters,
            parted=prefixes.parted,
            length=prefixes.length + 1,
            likelihood=(before + self.heard[prefixes.item, letters]).logsumexp(1),
        )

    def _before(self, prefixes: Prefixes, letters: torch.Tensor) -> torch.Tensor:
        """`[N, T]`: paths of the prefix up to which a letter `[N]` may follow; the same again only after a blank."""
        every = prefixes.letter.logaddexp(prefixes.blank)
        return torch.where((letters == prefixes.last)[:, None], prefixes.blank, every)[:, :-1]

    def _choices(self, prefixes: Prefixes, scores: torch.Tensor) -> torch.Tensor:
        """
        `[N, C]` tokens that are likeliest by the language model and their first letter; what is unlikely to the one may be
        all the other hears. The end is always among them.
        """
        apart = prefixes[torch.arange(len(scores))]
        begun = (prefixes.last > 0).nonzero()[:, 0]
        apart.put(begun, self._extend(prefixes[begun], torch.full_like(begun, SPACE)))
        together, apart = (self._next_letters(x) - prefixes.likelihood[:, None] for x in (prefixes, apart))
        together[:, BLANK] = apart[:, BLANK] = 0  # tokens without letters
        parted = prefixes.parted[:, None] | (self.spelling[:, 0] == SPACE)
        first = torch.where(parted, apart[:, self.first], together[:, self.first])
        rank = (scores + LETTER_WEIGHT * first).masked_fill(self.unspelled, -torch.inf)
        return rank.masked_fill(self.ends, torch.inf).topk(min(CHOICES, rank.shape[1])).indices

    def _next_letters(self, prefixes: Prefixes) -> torch.Tensor:
        """Log-likelihood `[N, 1 + letters]` of transcripts that begin with the prefix and a letter more."""
        heard = self.heard[prefixes.item]
        every = prefixes.letter.logaddexp(prefixes.blank)[:, None, :-1]
        again = (self._before(prefixes, prefixes.last) + heard[torch.arange(len(heard)), prefixes.last]).logsumexp(1)
        return (every + heard).logsumexp(2).scatter(1, prefixes.last[:, None], again[:, None])
