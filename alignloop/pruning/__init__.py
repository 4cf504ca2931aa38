"""Data pruning (The Llama 3 Herd of Models, 4.2.3): the steps in order, for the loop's stage and for a file alone."""
