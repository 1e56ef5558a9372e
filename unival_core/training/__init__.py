"""Parts of training: options, optimiser, averaged weights, losses, rewards, processes, saved state, command line."""
