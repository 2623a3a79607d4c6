#!lua flags=allow-oom
-- Take a lease that is free, or lengthen one's own; with a time of 0, give it up.
-- A lease that has more time left than it was taken for is free: the clock was set back since.
--
-- KEYS  1 lease  string  "<token of the holder> <for how long, ms>"; expires
-- ARGV  1 token  2 for how long, ms  3 whether one's own is not lengthened either: 0|1
-- Returns 1 if the lease is held under the token now, else 0.
local holder, lasts = string.match(redis.call('GET', KEYS[1]) or '', '^(.*) (%d+)$')
local mine = not holder or (holder == ARGV[1] and ARGV[3] == '0')
if not mine and (ARGV[2] == '0' or redis.call('PTTL', KEYS[1]) <= tonumber(lasts)) then return 0 end
if ARGV[2] == '0' then
  if holder == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return 0
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[2])
return 1
