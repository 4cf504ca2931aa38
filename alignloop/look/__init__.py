"""What a person looks at in a run: a row token by token, a row's life, what changed between two rounds, how far it is.

`inspect`: ROW ─► rows ─► setting (recipe, tokenizer) ─► views (groups, pieces, as training builds them) ─► screen
`why`:     ROW-ID ─► find ─► why (a life of `steps`) ─► life, in words or JSON
`diff`:    two rounds ─► round_data ─► diff (changes, largest first)
"""
