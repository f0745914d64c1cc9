"""The embedded miniature: a world of chain-arithmetic problems, a small reasoning model that
overthinks them, an oracle judge."""
