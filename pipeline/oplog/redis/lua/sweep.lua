#!lua flags=allow-oom
-- Take the bell of each shard that has been dirty for a while, and has no bell: a ring was lost. What lies further ahead
-- than anything is ever set is of a clock that was set back since: it is due now.
--
-- KEYS  1 room  2 full  then per shard: dirty, bell
-- ARGV  1 ms until the bell counts as lost  2 how long in ms a bucket must have been due
--       3 how far ahead at most a bucket rests, or one of the keys expires, ms
-- Returns per shard "<ring: 0|1> <dirty buckets>".
local time = redis.call('TIME')
local now, most, reply = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[3]), {}
local function drop_strange(key)
  local left = redis.call('PTTL', key)
  if left > most or left == -1 then redis.call('DEL', key) end  -- ours all expire
end
drop_strange(KEYS[1])
drop_strange(KEYS[2])
for i = 3, #KEYS, 2 do
  local set, bell, ring = KEYS[i], KEYS[i + 1], 0
  drop_strange(bell)
  local dirty = redis.call('ZCARD', set)
  if dirty > 0 then
    for _, bucket in ipairs(redis.call('ZRANGEBYSCORE', set, '(' .. now + most, '+inf')) do
      redis.call('ZADD', set, 'XX', now, bucket)
    end
    if redis.call('ZCOUNT', set, '-inf', now - tonumber(ARGV[2])) > 0
        and redis.call('SET', bell, '1', 'NX', 'PX', ARGV[1]) then
      ring = 1
    end
  end
  reply[#reply + 1] = ring .. ' ' .. dirty
end
return reply
