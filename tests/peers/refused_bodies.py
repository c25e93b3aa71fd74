"""http.client with bodies that are refused while they are being sent: each response must arrive.

python refused_bodies.py URL URL_WITH_KEY
"""

import http.client
import json
import sys
import urllib.error
import urllib.parse
import urllib.request

BODY = b" " * (10 << 20)


def check(method, base, path, status):
    host = urllib.parse.urlsplit(base).netloc
    for _ in range(20):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request(method, path, BODY)
        answer = connection.getresponse()
        assert answer.status == status, (path, answer.status)
        assert json.load(answer)["error"]["code"], path
        connection.close()
    try:
        urllib.request.urlopen(urllib.request.Request(base + path, BODY, method=method), timeout=30)
    except urllib.error.HTTPError as error:
        assert error.code == status, (path, error.code)
        error.close()
    else:
        raise AssertionError(path)


free, locked = sys.argv[1:]
check("POST", free, "/v1/topics/a/messages", 413)
check("POST", free, "/nothing", 404)
check("POST", free, "/v1/stats", 405)
check("POST", locked, "/v1/topics/a/messages", 401)
