"""Who attends to whom in a block, as a dense mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr.threads.layout import Block


def mark_attended(mask: npt.NDArray[np.bool_], block: Block) -> None:
    """Set `mask` [tokens, tokens] of `block`, all false, where a token attends to another.

    A segment sees what the last token of each of its references sees: rows are copied, and no closure is walked.
    """
    longest = max((segment.stop - segment.start for segment in block.segments), default=0)
    triangle = np.tri(longest, dtype=np.bool_)
    seen: list[npt.NDArray[np.bool_]] = []  # by each segment, before its own tokens
    for segment in block.segments:
        views = [
            mask[block.segments[older].start + length - 1] if length else seen[older] for older, length in segment.sees
        ]
        start, stop = segment.start, segment.stop
        if len(views) == 1:
            seen.append(views[0])
        else:
            seen.append(np.logical_or.reduce(views) if views else np.zeros(len(mask), np.bool_))
        if views:
            mask[start:stop, :start] = seen[-1][:start]
        mask[start:stop, start:stop] = triangle[: stop - start, : stop - start]
