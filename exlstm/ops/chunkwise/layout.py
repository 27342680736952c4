"""Where the steps of a batch lie in chunks aligned with their position in their document.

The levels of the hierarchical memory follow the bits of a step's position, so a chunk must hold the positions
[p L, (p + 1) L) of one document. Rows are realigned to such chunks here: absent steps vanish, every document begins a
chunk of its own, and a document that goes on from a state begins inside the chunk where that state stands.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

KEPT = 4


@dataclass(frozen=True, eq=False)
class Layout:
    """M chunks of L steps, in the order of rows and, within a row, of time."""

    size: int  # L
    steps: Tensor  # [P] the present steps, as indices into [B * T]
    places: Tensor  # [P] their places, as indices into [M * L]
    row: Tensor  # [M] the row that a chunk is of
    number: Tensor  # [M] p: the chunk holds the positions [p L, (p + 1) L) of its document
    start: Tensor  # [M] the first chunk here of the same document
    continues: Tensor  # [M] bool: the document is the one that the row's initial state belongs to
    last: Tensor  # [B] the last chunk of the row's last document; M where that has no present step
    position: Tensor  # [B] the present steps of the row's last document, those before the call included
    emptied: Tensor  # [B] bool: the row's last document began in this call

    @classmethod
    def of(
        cls, batch: int, time: int, size: int, position: Tensor, mask: Tensor | None, reset: Tensor | None
    ) -> "Layout":
        """Lay out `batch` rows of `time` steps that start at `position` [B] of their first document."""
        device, bits = position.device, size.bit_length() - 1
        present = torch.ones(batch, time, dtype=torch.bool, device=device) if mask is None else mask
        document = torch.zeros(batch, time, dtype=torch.int64, device=device) if reset is None else reset.cumsum(-1)
        count = present.cumsum(-1) - present.long()  # present steps of the row before this one
        if reset is not None:
            at_start = torch.where(reset, count, 0).cummax(-1).values
        else:
            at_start = torch.zeros_like(count)
        within = count - at_start + torch.where(document == 0, position[:, None], 0)

        steps = present.flatten().nonzero()[:, 0]
        row = steps // time
        within_p, document_p = within.flatten()[steps], document.flatten()[steps]
        key = torch.stack([row, document_p, within_p >> bits])
        new = (key[:, 1:] != key[:, :-1]).any(0)
        chunk = torch.cat([new.new_zeros(min(1, len(steps))), new]).cumsum(0)
        first = torch.cat([new.new_ones(min(1, len(steps))), new]).nonzero()[:, 0]
        row_c, document_c, number = key[:, first]
        new_document = torch.cat(
            [
                new.new_ones(min(1, len(first))),
                (row_c[1:] != row_c[:-1]) | (document_c[1:] != document_c[:-1]),
            ]
        )
        identity = torch.arange(len(first), device=device)
        start = torch.where(new_document, identity, 0).cummax(0).values

        of_last = document_c == document[row_c, -1]
        last = torch.full((batch,), -1, device=device).scatter_reduce(
            0, row_c[of_last], identity[of_last], "amax", include_self=True
        )
        return cls(
            size=size,
            steps=steps,
            places=chunk * size + (within_p & (size - 1)),
            row=row_c,
            number=number,
            start=start,
            continues=document_c == 0,
            last=torch.where(last < 0, len(first), last),
            position=within[:, -1] + present[:, -1],
            emptied=document[:, -1] > 0,
        )

    @classmethod
    def from_empty(
        cls, batch: int, time: int, size: int, mask: Tensor | None, reset: Tensor | None, device: torch.device
    ) -> "Layout":
        """The same of rows that begin with an empty memory: one object for equal masks and resets, if asked soon again.

        All layers of a model ask for it; what is made of it can be kept by it.
        """
        global _kept  # replaced as a whole, so that threads need no lock
        sizes = (batch, time, size, device, mask is None, reset is None)
        marks = [x for x in (mask, reset) if x is not None]
        for kept in _kept:
            if kept.sizes == sizes and all(map(torch.equal, kept.marks, marks)):
                return kept.layout
        with torch.inference_mode(False):
            position = torch.zeros(batch, dtype=torch.int64, device=device)
            layout = cls.of(batch, time, size, position, mask, reset)
        if type(layout.steps) is Tensor:  # and not one without numbers, in a trace
            _kept = (_Kept(sizes, [x.clone() for x in marks], layout), *_kept[: KEPT - 1])
        return layout

    @property
    def chunks(self) -> int:
        """M."""
        return len(self.row)

    def gather(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """[B, T, H, ...] to [M, H, L, ...], with `fill` where no step lies."""
        flat = x.flatten(0, 1).index_select(0, self.steps)
        if self.chunks * self.size == len(self.steps):
            out = flat
        else:
            out = flat.new_full((self.chunks * self.size, *flat.shape[1:]), fill).index_copy(0, self.places, flat)
        return out.unflatten(0, (self.chunks, self.size)).transpose(1, 2).contiguous()

    def scatter(self, x: Tensor, batch: int, time: int) -> Tensor:
        """[M, H, L, D] to [B, T, H, D], with 0 at absent steps."""
        flat = x.transpose(1, 2).flatten(0, 1).index_select(0, self.places)
        if len(self.steps) < batch * time:
            flat = flat.new_zeros(batch * time, *flat.shape[1:]).index_copy(0, self.steps, flat)
        return flat.unflatten(0, (batch, time))


class _Kept(NamedTuple):
    sizes: tuple[Any, ...]
    marks: list[Tensor]  # mask and reset, where there are such
    layout: Layout


_kept: tuple[_Kept, ...] = ()
