"""`alignloop inspect ROW`: a row as the objectives see it, token by token.

ROW ─► rows.find_row ─► setting.find_setting (recipe, tokenizer) ─► views.views_of (groups, pieces, as training
builds them) ─► screen.print_views
"""

from __future__ import annotations

from alignloop.inspection.rows import FoundRow, find_row
from alignloop.inspection.screen import print_views
from alignloop.inspection.setting import Setting, find_setting
from alignloop.inspection.views import View, views_of

__all__ = ["FoundRow", "Setting", "View", "find_row", "find_setting", "print_views", "views_of"]
