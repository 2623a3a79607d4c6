#!lua flags=no-writes,allow-oom
-- Measure the entries behind a position of each log, until all together have so many bytes. For logs with large ops: the
-- server reads the entries, and sends none.
--
-- KEYS  the logs, in the order in which they are measured
-- ARGV  1 bytes  2 ops per log at most  3 ops of an entry at most  then per log: the id to begin at
-- Returns a list per log that was reached: the bytes of each op, in order; of an entry of several ops, each has its
-- share. Positions are dense, so an entry has as many ops as it is away from the one before. The last op may go beyond
-- the bytes.
local left, reply = tonumber(ARGV[1]), {}
for i = 1, #KEYS do
  if left <= 0 then break end
  local sizes, from = {}, ARGV[i + 3]
  local epoch, seq = string.match(from, '(%d+)-(%d+)')
  while #sizes < tonumber(ARGV[2]) and left > 0 do
    local entry = redis.call('XRANGE', KEYS[i], from, '+', 'COUNT', 1)[1]
    if not entry then break end
    local size = 0
    for _, field in ipairs(entry[2]) do size = size + #field end
    local e, s = string.match(entry[1], '(%d+)-(%d+)')
    local ops = s - (e == epoch and seq or 0) + 1
    if ops < 1 or ops > tonumber(ARGV[3]) then ops = 1 end
    local share = math.ceil(size / ops)
    for _ = 1, ops do
      if #sizes == tonumber(ARGV[2]) or left <= 0 then break end
      sizes[#sizes + 1], left = share, left - share
    end
    epoch, seq, from = e, s + 1, '(' .. entry[1]
  end
  reply[i] = sizes
end
return reply
