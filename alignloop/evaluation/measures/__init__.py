"""What the benchmarks do not show, as pure functions: values in, figures with standard errors out."""
