#!lua flags=allow-oom
-- Take a lease that is free, or lengthen one's own; with a time of 0, give it up.
--
-- KEYS  1 lease  string  token of the holder; expires
-- ARGV  1 token  2 for how long, ms
-- Returns 1 if the lease is held under the token now, else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
