#!lua flags=allow-oom
-- Take the bell of a shard that has been dirty for a while, and has no bell: a ring was lost.
-- The server's clock may have been set back: then buckets seem to rest, and a bell to be on its way, for as long as that.
--
-- KEYS  1 dirty  2 bell
-- ARGV  1 ms until the bell counts as lost  2 how long in ms a bucket must have been due  3 the longest rest of a bucket, ms
-- Returns "<ring: 0|1> <dirty buckets>".
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dirty, ring = redis.call('ZCARD', KEYS[1]), 0
for _, bucket in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now + ARGV[3]), '+inf')) do
  redis.call('ZADD', KEYS[1], 'XX', 0, bucket)
end
if redis.call('PTTL', KEYS[2]) > tonumber(ARGV[1]) then redis.call('DEL', KEYS[2]) end
if dirty > 0 and redis.call('ZCOUNT', KEYS[1], '-inf', now - tonumber(ARGV[2])) > 0
    and redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then
  ring = 1
end
return ring .. ' ' .. dirty
