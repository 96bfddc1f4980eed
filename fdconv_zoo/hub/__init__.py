"""The Hugging Face Hub: model cards, weights fetched ahead of time, cached files held against the Hub's hashes."""
