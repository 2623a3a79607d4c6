#!lua flags=no-writes,allow-oom
-- Read of each shard how many batches its workers have done, or that there is work, or somebody at it.
--
-- KEYS  per shard: dirty, bell, counts (hash counter -> n)
-- ARGV  1, 2 counters of what happens there
-- Returns per shard "" where there is work, or where a key is not ours; else the counters.
local reply = {}
for i = 1, #KEYS, 3 do
  local dirty, counted = redis.pcall('ZCARD', KEYS[i]), redis.pcall('HMGET', KEYS[i + 2], ARGV[1], ARGV[2])
  local quiet = dirty == 0 and redis.call('EXISTS', KEYS[i + 1]) == 0 and not counted.err
  reply[#reply + 1] = quiet and (counted[1] or 0) .. ' ' .. (counted[2] or 0) or ''
end
return reply
