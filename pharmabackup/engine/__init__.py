"""Where bytes, keys and format meet: blocks, packs, index, recipes, manifests, transactions, rosters."""
