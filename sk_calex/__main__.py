"""``python -m sk_calex``: versions, optional parts and devices."""

from sk_calex.utils._versions import show_versions

if __name__ == "__main__":
    show_versions()
