#!lua flags=no-writes,allow-oom
-- Find one entry in a range of each log, the first or the last, and cut what it holds: of large ops, the server sends
-- where they stand and how they begin.
--
-- KEYS  the logs
-- ARGV  1 XRANGE or XREVRANGE  2 the most bytes of a field  then per log: where its range begins, and where it ends
-- Returns per log what the command gives: a list of one entry, or of none.
local most, reply = tonumber(ARGV[2]), {}
for i = 1, #KEYS do
  local found = redis.call(ARGV[1], KEYS[i], ARGV[2 * i + 1], ARGV[2 * i + 2], 'COUNT', 1)
  for _, entry in ipairs(found) do
    for n, field in ipairs(entry[2]) do entry[2][n] = string.sub(field, 1, most) end
  end
  reply[i] = found
end
return reply
