<?php
// Calls, numbers, arrays, text and sorting.
function fib(int $n): int { return $n < 2 ? $n : fib($n - 1) + fib($n - 2); }
$total = 0;
for ($i = 0; $i < 1500000; $i++) $total = ($total * 31 + $i) & 0xffffffff;
$rows = [];
for ($i = 0; $i < 60000; $i++) $rows[] = ['key' => $i * 7919 % 60013, 'name' => "row $i"];
usort($rows, fn($a, $b) => $a['key'] <=> $b['key']);
$text = json_encode($rows);
preg_match_all('/\w+/', $text, $words);
$counts = array_count_values($words[0]);
echo fib(25), " $total {$rows[777]['name']} ", strlen($text), ' ', count($counts), "\n";
