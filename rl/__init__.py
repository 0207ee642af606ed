import apr  # noqa: F401 (settles how threads wait, before a module here imports torch)
