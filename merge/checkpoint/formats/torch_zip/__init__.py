"""The zip files that torch.save writes: a pickle that names storages, and one stored record for each storage."""
