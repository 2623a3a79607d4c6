#!lua flags=allow-oom
-- Publish a report on each node, with the server's time: readers reckon its age by the same clock.
--
-- KEYS  1 health  hash  node -> "<ms> <report>"; expires, and loses the nodes without a new report
-- ARGV  1 ms until the reports expire  then per node: name, report
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], now .. ' ' .. ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return now
