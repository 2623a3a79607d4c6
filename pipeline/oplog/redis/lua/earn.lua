#!lua flags=allow-oom
-- The budget of a primary: every read adds a share of one, a read that falls on the primary takes one off.
--
-- KEYS  1 budget  string  how many it may take; expires when idle, and is full then
-- ARGV  1 to add  2 the most there may be  3 1: take one off  4 idle ms
-- Returns 1 if one was taken, else 0.
local left = math.min(tonumber(redis.call('GET', KEYS[1]) or ARGV[2]) + tonumber(ARGV[1]), tonumber(ARGV[2]))
local taken = 0
-- shares are sums of fractions: ten times 0.1 is a little less than one
if ARGV[3] == '1' and left >= 0.999999 then left, taken = left - 1, 1 end
redis.call('SET', KEYS[1], string.format('%.6f', left), 'PX', ARGV[4])
return taken
