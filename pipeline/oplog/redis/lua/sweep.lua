#!lua flags=allow-oom
-- Take the bell of a shard that has been dirty for a while, and has no bell: a ring was lost. What lies further ahead
-- than anything is ever set is of a clock that was set back since: it is due now.
--
-- KEYS  1 dirty  2 bell  3 room  4 full
-- ARGV  1 ms until the bell counts as lost  2 how long in ms a bucket must have been due
--       3 how far ahead at most a bucket rests, or one of the keys expires, ms
-- Returns "<ring: 0|1> <dirty buckets>".
local time = redis.call('TIME')
local now, most = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[3])
for i = 2, 4 do
  local left = redis.call('PTTL', KEYS[i])
  if left > most or left == -1 then redis.call('DEL', KEYS[i]) end  -- ours all expire
end
local dirty, ring = redis.call('ZCARD', KEYS[1]), 0
if dirty > 0 then
  for _, bucket in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now + most, '+inf')) do
    redis.call('ZADD', KEYS[1], 'XX', now, bucket)
  end
end
if dirty > 0 and redis.call('ZCOUNT', KEYS[1], '-inf', now - tonumber(ARGV[2])) > 0
    and redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then
  ring = 1
end
return ring .. ' ' .. dirty
