"""Leads links from the book to files of the repository outside it, such as ../deploy/nginx/deeperhub.conf.

In the repository such a link works as it stands. In the book it becomes one to the repository's page for the file;
a file that is not there fails the strict build.
"""

import logging
import re
from pathlib import Path

log = logging.getLogger("mkdocs.hooks")

LINK = re.compile(r"\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown, page, config, files):
    root = Path(config.config_file_path).parent
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def outside(match):
        path, anchor = match[1], match[2] or ""
        target = (folder / path).resolve()
        if not target.is_relative_to(root) or not target.exists():
            log.warning("%s links to %s, which is not in the repository", page.file.src_uri, path)
            return match[0]
        if target.is_relative_to(config.docs_dir):
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config.extra['repository']}/{kind}/main/{target.relative_to(root)}{anchor})"

    return LINK.sub(outside, markdown)
