# Calls, numbers, dictionaries, text and sorting; for python3 and pypy3.
import json


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


class Row:
    def __init__(self, key, name):
        self.key = key
        self.name = name


total = 0
for i in range(600000):
    total = (total * 31 + i) & 0xFFFFFFFF
rows = [Row(i * 7919 % 30011, "row %d" % i) for i in range(30000)]
rows.sort(key=lambda row: row.key)
text = json.dumps([{"key": row.key, "name": row.name} for row in rows])
counts = {}
for word in text.replace('"', " ").split():
    counts[word] = counts.get(word, 0) + 1
print(fib(22), total, rows[777].name, len(text), len(counts), len(json.loads(text)))
