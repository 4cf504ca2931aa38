"""What a run would do, before it does it."""

from alignloop.plan.problems import recipe_or_problems
from alignloop.plan.text import plan_text
from alignloop.plan.walk import Plan, PlannedStage, make_plan

__all__ = ["Plan", "PlannedStage", "make_plan", "plan_text", "recipe_or_problems"]
