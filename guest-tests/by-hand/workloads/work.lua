-- Numbers, tables, closures and text; for lua and luajit. The argument is a factor of its loops.
local factor = tonumber(arg[1])
local sum = 0
for i = 1, 1000000 * factor do sum = (sum + i * 3) % 1000003 end
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
local parts = {}
for i = 1, 20000 * factor do parts[i] = tostring(i * 7919 % 30011) end
table.sort(parts)
local counts = {}
for word in table.concat(parts, " "):gmatch("%d+") do counts[#word] = (counts[#word] or 0) + 1 end
local adders = {}
for i = 1, 1000 do adders[i] = function(x) return x + i end end
local total = 0
for turn = 1, 50 * factor do for i = 1, 1000 do total = adders[i](total) % 1000003 end end
print(sum, fib(27), parts[777], counts[4], total)
