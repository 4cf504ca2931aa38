"""What a person looks at in a run: a row token by token, a row's life, what changed between two rounds, how far it is.

`inspect`: ROW ─► rows ─► setting (recipe, tokenizer) ─► views (groups, pieces, as training builds them) ─► screen
`why`:     ROW-ID ─► find ─► prompt_life, preference_life (steps, candidates, twins) ─► why
`diff`:    two rounds ─► round_data ─► diff (changes, largest first)
"""
