"""Where a row comes from and what became of it, and what changed between two rounds' data: read from a run's files.

ROW-ID --find--> ids --life--> Life (steps, candidates, twins) --life_text--> the screen
two rounds --round_facts--> numbers of each --diff--> changes, largest first --diff_text--> the screen
"""

from alignloop.lineage.diff import diff_of
from alignloop.lineage.diff_text import diff_json, diff_text
from alignloop.lineage.life import lives_of
from alignloop.lineage.life_text import lives_json, lives_text

__all__ = ["diff_json", "diff_of", "diff_text", "lives_json", "lives_of", "lives_text"]
