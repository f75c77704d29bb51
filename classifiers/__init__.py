"""The guide, which steers sampling, and the judge, which measures and never steers."""
