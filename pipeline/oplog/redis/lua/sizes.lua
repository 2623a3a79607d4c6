#!lua flags=no-writes,allow-oom
-- Measure the entries behind a position of each log, until all together have so many bytes. For logs with large ops: the
-- server reads the entries, and sends none.
--
-- KEYS  the logs, in the order in which they are measured
-- ARGV  1 bytes  2 entries per log at most  then per log: the id to begin at
-- Returns a list per log that was reached: the bytes of each entry, in order. The last entry may go beyond the bytes.
local left, reply = tonumber(ARGV[1]), {}
for i = 1, #KEYS do
  if left <= 0 then break end
  local sizes, from = {}, ARGV[i + 2]
  while #sizes < tonumber(ARGV[2]) and left > 0 do
    local entry = redis.call('XRANGE', KEYS[i], from, '+', 'COUNT', 1)[1]
    if not entry then break end
    local size = 0
    for _, field in ipairs(entry[2]) do size = size + #field end
    sizes[#sizes + 1], left, from = size, left - size, '(' .. entry[1]
  end
  reply[i] = sizes
end
return reply
