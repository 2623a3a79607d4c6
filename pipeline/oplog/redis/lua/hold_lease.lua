#!lua flags=allow-oom
-- Take a lease that is free, or lengthen one's own; with a time of 0, give it up.
-- A lease that has longer to go than anybody takes it for is free: the server's clock was set back.
--
-- KEYS  1 lease  string  token of the holder; expires
-- ARGV  1 token  2 for how long, ms  3 "1": one's own is not lengthened, it must be free
-- Returns 1 if the lease is held under the token now, else 0.
local holder = redis.call('GET', KEYS[1])
if ARGV[2] == '0' then
  if holder == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return 0
end
if holder and (holder ~= ARGV[1] or ARGV[3] == '1') and redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
