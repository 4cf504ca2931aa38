"""Completions judged by a model: compared in pairs, or given points, by prompts that are files."""
