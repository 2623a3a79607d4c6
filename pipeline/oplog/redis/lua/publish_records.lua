#!lua flags=allow-oom
-- Publish a record of each shard, with the server's time, and add to the shard's history. Runs although memory is full:
-- that is when people look.
--
-- KEYS  per record 3: record (string "<ms> <text>"), recent (list of points, newest first), day (the same)
-- ARGV  1 ms until a record expires  2 ms until a history expires that nobody adds to  3, 4 most points of recent, day
--       then per record: text, its point for recent, its point for day; an empty point is none
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local at = 5
for i = 1, #KEYS, 3 do
  redis.call('SET', KEYS[i], now .. ' ' .. ARGV[at], 'PX', ARGV[1])
  for n = 1, 2 do
    if ARGV[at + n] ~= '' then
      redis.call('LPUSH', KEYS[i + n], ARGV[at + n])
      redis.call('LTRIM', KEYS[i + n], 0, ARGV[2 + n] - 1)
      redis.call('PEXPIRE', KEYS[i + n], ARGV[2])
    end
  end
  at = at + 3
end
return now
