#!lua flags=allow-oom
-- Take leases that are free, or lengthen one's own; with a time of 0, give them up.
-- A lease that has more time left than it was taken for is free: the clock was set back since.
--
-- KEYS  leases  string  "<token of the holder> <for how long, ms>"; each expires
-- ARGV  1 token  2 for how long, ms  3 whether one's own is not lengthened either: 0|1
-- Returns 1 if the last of the leases is held under the token now, else 0. One that cannot be read is an error, which hinders
-- no other lease.
local function hold(lease)
  local holder, lasts = string.match(redis.call('GET', lease) or '', '^(.*) (%d+)$')
  local mine = not holder or (holder == ARGV[1] and ARGV[3] == '0')
  if not mine and (ARGV[2] == '0' or redis.call('PTTL', lease) <= tonumber(lasts)) then return 0 end
  if ARGV[2] == '0' then
    if holder == ARGV[1] then redis.call('DEL', lease) end
    return 0
  end
  redis.call('SET', lease, ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[2])
  return 1
end
local held, failed = 0, nil
for _, lease in ipairs(KEYS) do
  local whole, reply = pcall(hold, lease)
  if whole then held = reply else failed = reply end
end
if not failed then return held end
return redis.error_reply(type(failed) == 'table' and failed.err or failed)
