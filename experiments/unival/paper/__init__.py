"""The paper's claims beside what a folder of results says of them."""
