// Start-up, code that gets hot, and some that does not: closures, objects, text, JSON, sorting.
function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
let sum = 0;
for (let i = 0; i < 5e6; i++) sum = (sum * 31 + i) | 0;
const rows = [];
for (let i = 0; i < 40000; i++) rows.push({ key: (i * 7919) % 40009, name: 'row ' + i });
rows.sort((a, b) => a.key - b.key);
const text = JSON.stringify(rows);
const words = new Map();
for (const word of text.replace(/[^a-z0-9]+/g, ' ').split(' ')) words.set(word, (words.get(word) ?? 0) + 1);
const made = [];
for (let i = 0; i < 300; i++) made.push(new Function('x', `return x * ${i} + ${i % 7};`));
console.log(fib(27), sum, rows[777].name, text.length, words.size, made.reduce((total, f) => total + f(3), 0));
console.log(JSON.parse(text)[40].name);
