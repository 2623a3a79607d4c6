#!lua flags=allow-oom
-- Take the bell of a shard that has been dirty for a while, and has no bell: a ring was lost.
--
-- KEYS  1 dirty  2 bell
-- ARGV  1 ms until the bell counts as lost  2 how long in ms a bucket must have been due
-- Returns "<ring: 0|1> <dirty buckets>".
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dirty, ring = redis.call('ZCARD', KEYS[1]), 0
if dirty > 0 and redis.call('ZCOUNT', KEYS[1], '-inf', now - tonumber(ARGV[2])) > 0
    and redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then
  ring = 1
end
return ring .. ' ' .. dirty
