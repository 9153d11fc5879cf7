"""Models of ModelScope (https://modelscope.cn): a repository's files in the cache, verified.

The HTTP interface is that of the vendor's own clients, ``modelscope`` 1.40.2 and ``modelscope-hub`` 0.5.1 on PyPI, which are
not dependencies: the second is alpha, has 23,000 lines for all that the site offers, needs requests, cryptography and
filelock, and reads credentials from a pickle. What is used of it, all GET below ``/api/v1/models/ORG/NAME``:

``/repo/files?Revision=R&Recursive=False``
    lists the files of the top folder: ``{"Code": 200, "Success": true, "Data": {"Files": [{"Path", "Size", "Sha256", "Type", "Revision"}],
    "LatestCommitter": {"Id", "ShortId"}}}``; at most 3,000 of them. For an unknown revision ``Files`` is null.
``/repo?Revision=R&FilePath=P``
    is a file, by a redirect for large ones; it supports ``Range``.
``/revisions``
    names the revisions: ``{"Data": {"RevisionMap": {"Branches": [{"Revision"}], "Tags": [{"Revision"}]}}}``.

An unknown or private repository gives 404 with the code 10010205001. The token goes into ``Authorization`` and into the cookie
``m_session_id``, as some of the site's addresses read only one of them.
"""
