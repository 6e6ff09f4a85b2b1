"""GSM8K (Cobbe et al. 2021): grade-school word problems with one number as the answer."""
