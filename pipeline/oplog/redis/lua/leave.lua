#!lua flags=allow-oom
-- Give up a bell that is held, and look once more: whoever appends from now on rings, what was appended before is seen.
-- Where another holds the bell it is woken, as its wake-up may have been taken away by who leaves.
--
-- KEYS  1 dirty  2 bell, see `enqueue.lua`  3 wake
-- ARGV  1 who held the bell  2 ms until the bell counts as lost  3 nobody is to ring for what has been due for longer, ms
-- Returns "<ring: 0|1> <dirty buckets>".
local bell, left = redis.call('MGET', KEYS[2])[1] or '', redis.call('ZCARD', KEYS[1])
if string.sub(bell, 3) == ARGV[1] then
  redis.call('DEL', KEYS[2], KEYS[3])
  bell = ''
end
if bell == '1' or left == 0 then return '0 ' .. left end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('ZCOUNT', KEYS[1], ARGV[3] == '' and '-inf' or now - ARGV[3], now) == 0 then return '0 ' .. left end
if bell == '' then
  redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
  return '1 ' .. left
end
redis.pcall('LPUSH', KEYS[3], '1')
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return '0 ' .. left
