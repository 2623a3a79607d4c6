#!lua flags=allow-oom
-- Publish what the prober knows of the nodes, behind the server's time: readers reckon the age by the same clock.
--
-- KEYS  1 health  hash  node -> "<ms> <JSON>"; expires, and nodes that are no longer told of go
-- ARGV  1 for how long, ms  then per node: name, JSON
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], now .. ' ' .. ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return now
